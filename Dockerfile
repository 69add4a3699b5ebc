# CPU:   docker build -t equipot .
# CUDA:  docker build -t equipot:cuda --build-arg BASE=nvidia/cuda:12.8.1-devel-ubuntu24.04 .
#        docker run --gpus all ...
# Small, to run deployed models on CPUs (ASE, equipot md, C), without a compiler: docker build -t equipot:inference --target inference .
# BASE is any Debian or Ubuntu with Python 3.11 or newer. The pinned PyTorch wheel brings its own CUDA libraries
# and runs on both; TORCH_INDEX, the address of another index of PyTorch wheels, picks a smaller or other build.
ARG BASE=debian:bookworm-slim
FROM ${BASE} AS python
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home equipot && install -d -o equipot /home/equipot/equipot
ENV PIP_NO_CACHE_DIR=1

FROM python AS compiler
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ python3-dev \
 && rm -rf /var/lib/apt/lists/*
USER equipot
WORKDIR /home/equipot/equipot
COPY --chown=equipot . .

FROM compiler AS wheel
RUN python3 -m venv /tmp/venv && /tmp/venv/bin/pip wheel . --no-deps -w /home/equipot/wheel && ls /home/equipot/wheel/*linux*.whl

FROM python AS inference
USER equipot
WORKDIR /home/equipot
ARG TORCH_INDEX=
COPY --from=wheel /home/equipot/wheel /home/equipot/equipot/constraints.txt wheel/
RUN python3 -m venv venv && PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" venv/bin/pip install -c wheel/constraints.txt wheel/*.whl
ENV PATH=/home/equipot/venv/bin:$PATH
CMD ["equipot", "--help"]

# The last one is what is built by default: training compiles its kernels for the processor, and the torch, at hand.
FROM compiler
ARG TORCH_INDEX=
RUN PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" bash -c 'source scripts/setup.sh'
ENV PATH=/home/equipot/equipot/.venv/bin:$PATH

# Try it: docker run --rm equipot scripts/quickstart
CMD ["equipot", "--help"]
