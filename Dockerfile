# CPU:   docker build -t equipot .
# CUDA:  docker build -t equipot:cuda --build-arg BASE=nvidia/cuda:12.8.1-devel-ubuntu24.04 .
#        docker run --gpus all ...
# BASE is any Debian or Ubuntu with Python 3.11 or newer. The pinned PyTorch wheel brings its own CUDA libraries
# and runs on both; TORCH_INDEX, the address of another index of PyTorch wheels, picks a smaller or other build.
ARG BASE=debian:bookworm-slim
FROM ${BASE}

RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates g++ python3 python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home equipot && install -d -o equipot /home/equipot/equipot
USER equipot
WORKDIR /home/equipot/equipot
COPY --chown=equipot . .

ARG TORCH_INDEX=
RUN PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" bash -c 'source scripts/setup.sh'
ENV PATH=/home/equipot/equipot/.venv/bin:$PATH

# Try it: docker run --rm equipot scripts/quickstart
CMD ["equipot", "--help"]
