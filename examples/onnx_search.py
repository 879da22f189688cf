"""Search with an exported student, using onnxruntime, tokenizers and numpy: onnx_search.py models/onnx QUERY"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

TEXTS = ["Copy a directory tree.", "Return the square root of x.", "Open a URL in a browser.", "Sort a list in place."]


def encode(texts: list[str], folder: Path) -> np.ndarray:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    batch = tokenizer.encode_batch(texts)
    inputs = {"input_ids": [e.ids for e in batch], "attention_mask": [e.attention_mask for e in batch]}
    session = onnxruntime.InferenceSession(folder / "onnx" / "model_int8.onnx")
    vectors: np.ndarray = session.run(None, {name: np.array(rows, np.int64) for name, rows in inputs.items()})[0]
    return vectors


vectors = encode([sys.argv[2], *TEXTS], Path(sys.argv[1]))
for score, text in sorted(zip(vectors[1:] @ vectors[0], TEXTS, strict=True), reverse=True):
    print(f"{score:.3f}  {text}")
