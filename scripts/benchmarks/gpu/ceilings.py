"""What the card can do at best: a copy, and matrix products as equipot runs them."""

import torch
from plan import Case, Context, Rows
from timing import measure

COPIED = {"full": 2**28, "small": 2**24, "tiny": 2**16}  # float32 numbers
ROWS = {"full": 600_000, "small": 20_000, "tiny": 200}


def cases(context: Context) -> dict[str, Case]:
    return {"copy": copy, "matrix products": products}


def copy(context: Context) -> Rows:
    """Bytes read and written by a copy within the device's memory."""
    source = torch.ones(COPIED[context.size], device=context.device)
    target = torch.empty_like(source)
    times = measure(lambda: target.copy_(source), context.device, 5)
    rate = 2 * source.numel() * 4 / times.device / 1e6
    return [{"what": "copy, read and written", "GB/s": rate, "known": {"copy GB/s": rate}}]


def products(context: Context) -> Rows:
    """Sizes of a NequIP's linear maps. equipot leaves TF32 off."""
    found = []
    shape = (ROWS[context.size], 192, 320)
    for dtype in (torch.float32, torch.float64):
        a = torch.randn(shape[0], shape[1], device=context.device, dtype=dtype)
        b = torch.randn(shape[1], shape[2], device=context.device, dtype=dtype)
        for tf32 in (False, True) if context.gpu and dtype == torch.float32 else (False,):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            try:
                times = measure(lambda a=a, b=b: a @ b, context.device, 5)
            finally:
                torch.backends.cuda.matmul.allow_tf32 = False
            rate = 2 * shape[0] * shape[1] * shape[2] / times.device / 1e9
            name = str(dtype).removeprefix("torch.") + (" as TF32" if tf32 else "")
            what = f"{name}, {shape[0]:,} × {shape[1]} × {shape[2]}"
            known = {f"{name} TFLOP/s": rate}
            found.append({"what": what, "TFLOP/s": rate, "known": known})
    return found
