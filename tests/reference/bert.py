"""Hugging Face's BERT and RoBERTa in NumPy, on tensors of their names."""

import numpy as np
from scipy import special

Tensors = dict[str, np.ndarray]
Config = dict[str, float]


def random_tensors(config: Config, seed: int = 0) -> Tensors:
  """Weights of an encoder with a pooler; a matrix is [outputs, inputs]."""
  d, inner = config["hidden_size"], config["intermediate_size"]
  shapes = {
      "embeddings.word_embeddings.weight": (config["vocab_size"], d),
      "embeddings.position_embeddings.weight": (
          config["max_position_embeddings"], d),
      "embeddings.token_type_embeddings.weight": (
          config["type_vocab_size"], d)}

  def add(name: str, *shape: int) -> None:
    shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

  add("embeddings.LayerNorm", d)
  for layer in range(config["num_hidden_layers"]):
    start = f"encoder.layer.{layer}"
    for name in ("self.query", "self.key", "self.value", "output.dense"):
      add(f"{start}.attention.{name}", d, d)
    add(f"{start}.attention.output.LayerNorm", d)
    add(f"{start}.intermediate.dense", inner, d)
    add(f"{start}.output.dense", d, inner)
    add(f"{start}.output.LayerNorm", d)
  add("pooler.dense", d, d)
  generator = np.random.default_rng(seed)
  return {name: generator.normal(0.0, 0.5, shape).astype(np.float32)
          for name, shape in shapes.items()}


def forward(tensors: Tensors, config: Config, ids: np.ndarray,
            segments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The last layer's output [b, L, d], and BERT's pooled output [b, d]."""
  def dense(x: np.ndarray, name: str) -> np.ndarray:
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

  def norm(x: np.ndarray, name: str) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    scaled = (x - mean) / np.sqrt(variance + config["layer_norm_eps"])
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

  rows, length = ids.shape
  pad = config["pad_token_id"]
  real = ids != pad
  positions = np.broadcast_to(np.arange(length), ids.shape)
  if config["model_type"] == "roberta":  # padding has the row `pad`
    positions = np.cumsum(real, axis=1) * real + pad
  table = {name: tensors[f"embeddings.{name}_embeddings.weight"].astype(float)
           for name in ("word", "position", "token_type")}
  x = norm(table["word"][ids] + table["position"][positions]
           + table["token_type"][segments], "embeddings.LayerNorm")
  heads = config["num_attention_heads"]
  for layer in range(config["num_hidden_layers"]):
    start = f"encoder.layer.{layer}"
    query, key, value = (
        dense(x, f"{start}.attention.self.{name}").reshape(
            rows, length, heads, -1).transpose(0, 2, 1, 3)
        for name in ("query", "key", "value"))
    scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(query.shape[-1])
    scores = np.where(real[:, None, None], scores, -np.inf)
    mixed = (special.softmax(scores, -1) @ value).transpose(0, 2, 1, 3)
    x = norm(x + dense(mixed.reshape(x.shape),
                       f"{start}.attention.output.dense"),
             f"{start}.attention.output.LayerNorm")
    inner = dense(x, f"{start}.intermediate.dense")
    inner = inner * 0.5 * (1.0 + special.erf(inner / np.sqrt(2.0)))
    x = norm(x + dense(inner, f"{start}.output.dense"),
             f"{start}.output.LayerNorm")
  return x, np.tanh(dense(x[:, 0], "pooler.dense"))
