#!/usr/bin/env python3
"""make_checkpoint.py FOLDER KIND LAYER [EXPERTS]

Writes one MoE layer with made-up weights as a Hugging Face checkpoint would hold it, for measuring how fast weights are loaded.
KIND: deepseek-v3 (fp8 blocks), deepseek-v3-bf16, qwen3-30b-a3b (bf16), gpt-oss-120b (mxfp4). EXPERTS: of the first ones, so many are
there (a rank's); all without.
"""
import json
import math
import os
import random
import struct
import sys

BYTES = {"BF16": 2, "F8_E4M3": 1, "F32": 4, "U8": 1, "E8M0": 1}


def values(kind):
    """About a megabyte of finite values that stand for all."""
    if kind == "BF16":
        return b"".join(struct.pack("<f", random.gauss(0, 0.02))[2:] for _ in range(1 << 16))
    if kind == "F32":
        return b"".join(struct.pack("<f", random.uniform(1e-4, 3e-4)) for _ in range(1 << 14))
    if kind == "F8_E4M3":
        return os.urandom(1 << 20).translate(bytes(b if b & 0x7F < 0x50 else b & 0xBF for b in range(256)))
    if kind == "E8M0":
        return bytes([119, 120, 121, 120]) * 4096
    return os.urandom(1 << 20)


def separate(experts, of, hidden, intermediate, fp8, deepseek):
    def matrix(name, rows, cols):
        yield name + ".weight", "F8_E4M3" if fp8 else "BF16", (rows, cols)
        if fp8:
            yield name + ".weight_scale_inv", "F32", (-(-rows // 128), -(-cols // 128))

    yield "gate.weight", "BF16", (of, hidden)
    if deepseek:
        yield "gate.e_score_correction_bias", "F32", (of,)
    for name in [f"experts.{e}" for e in range(experts)] + (["shared_experts"] if deepseek else []):
        yield from matrix(name + ".gate_proj", intermediate, hidden)
        yield from matrix(name + ".up_proj", intermediate, hidden)
        yield from matrix(name + ".down_proj", hidden, intermediate)


def stacked(experts, hidden, intermediate):
    yield "router.weight", "BF16", (experts, hidden)
    yield "router.bias", "BF16", (experts,)
    for name, rows, cols in (("gate_up_proj", 2 * intermediate, hidden), ("down_proj", hidden, intermediate)):
        yield f"experts.{name}_blocks", "U8", (experts, rows, cols // 32, 16)
        yield f"experts.{name}_scales", "E8M0", (experts, rows, cols // 32)
        yield f"experts.{name}_bias", "BF16", (experts, rows)


def main():
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    folder, kind, layer = sys.argv[1], sys.argv[2], int(sys.argv[3])
    experts = int(sys.argv[4]) if len(sys.argv) == 5 else None
    if kind in ("deepseek-v3", "deepseek-v3-bf16"):
        tensors = separate(experts or 256, 256, 7168, 2048, kind == "deepseek-v3", True)
    elif kind == "qwen3-30b-a3b":
        tensors = separate(experts or 128, 128, 2048, 768, False, False)
    elif kind == "gpt-oss-120b":
        tensors = stacked(128, 2880, 2880)
    else:
        sys.exit(f"no kind {kind}\n{__doc__}")
    header, end, parts = {}, 0, []
    for name, dtype, shape in tensors:
        size = math.prod(shape) * BYTES[dtype]
        header[f"model.layers.{layer}.mlp.{name}"] = {
            "dtype": "U8" if dtype == "E8M0" else dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        parts.append((dtype, size))
        end += size
    text = json.dumps(header).encode()
    pool = {dtype: values(dtype) for dtype in BYTES}
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for dtype, size in parts:
            file.write((pool[dtype] * -(-size // len(pool[dtype])))[:size])
    print(f"{folder}: {end * 1e-9:.2f} GB")


if __name__ == "__main__":
    main()
