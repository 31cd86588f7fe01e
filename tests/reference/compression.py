"""NumPy twin of the quantiser, from equation and packing by hand."""

import numpy as np


def parts(vector: np.ndarray, sizes: tuple[int, ...], bucket: int
          ) -> list[np.ndarray]:
  """Slices that share a norm."""
  if bucket:
    return [vector[i:i + bucket] for i in range(0, len(vector), bucket)]
  return np.split(vector, np.cumsum(sizes)[:-1])


def encode(vector: np.ndarray, uniform: np.ndarray, bits: int,
           sizes: tuple[int, ...], bucket: int = 0, norm: str = "l2"
           ) -> tuple[np.ndarray, np.ndarray]:
  """Codes (2 * level + is negative) and norms, in float64 until then."""
  s = 2 ** (bits - 1) - 1
  codes, norms = [], []
  for part, random in zip(parts(vector.astype(np.float64), sizes, bucket),
                          parts(uniform, sizes, bucket)):
    length = (np.abs(part).max() if norm == "max"
              else np.sqrt((part ** 2).sum()))
    position = np.abs(part) / (length or 1.0) * s
    level = np.floor(position) + (random < position - np.floor(position))
    codes.append(2 * level.astype(int) + (part < 0))
    norms.append(length)
  return np.concatenate(codes), np.array(norms)


def decode(codes: np.ndarray, norms: np.ndarray, bits: int,
           sizes: tuple[int, ...], bucket: int = 0) -> np.ndarray:
  """Float64 numbers of codes."""
  s = 2 ** (bits - 1) - 1
  return np.concatenate([
      (1 - 2 * (part % 2)) * (part // 2) * norm / s
      for part, norm in zip(parts(codes, sizes, bucket), norms)])


def packed(codes: np.ndarray, bits: int) -> bytes:
  """One long number, the first code in its lowest bits, little-endian."""
  number = sum(int(code) << (bits * i) for i, code in enumerate(codes))
  return number.to_bytes(-(-len(codes) * bits // 8), "little")
