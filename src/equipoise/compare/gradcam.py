"""Grad-CAM: which places of an image speak for a class, in the eyes of one network."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from equipoise.embed.backbones import load_keras

#: Places a side that a map has at least: what every backbone's last feature map has at 224 px.
_PLACES = 7


class GradCam:
    r"""Maps of one network, traced once.

    $\mathrm{map} = \mathrm{ReLU}(\sum_k \frac{\partial s}{\partial A_k} \odot A_k)$, where $A_k$ are the channels of
    the last feature map and $s$ is the logit of the class less the mean of the others' (for two classes the log odds).
    Average pooling and a linear head make the derivative the same at every place, its own spatial mean: this is
    Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391). Below 224 px the last map has too few places to
    point anywhere; the last one with 7 a side is taken, and there the product at each place is HiResCAM (Draelos and
    Carin 2020, https://arxiv.org/abs/2011.08891), since a mean derivative misses what stands at one place.
    """

    def __init__(self, network: Any) -> None:
        """Take a flat network as `network.with_head` makes it: pixels -> logits."""
        keras = load_keras()
        import tensorflow as tf

        spatial = [layer for layer in network.layers if len(layer.output.shape) == 4]
        fine = [layer for layer in spatial if min(layer.output.shape[1:3]) >= _PLACES]
        both = keras.Model(network.input, [(fine or spatial)[-1].output, network.output])
        others = network.output_shape[-1] - 1

        def trace(batch: Any, label: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(batch)  # frozen layers are watched by nobody else
                maps, logits = both(batch, training=False)
                score = (
                    logits[:, label] - (tf.reduce_sum(logits, axis=1) - logits[:, label]) / others
                )
            # float64: channels of an untrained network cancel to the last digits of float32.
            products = tf.cast(maps, tf.float64) * tf.cast(tape.gradient(score, maps), tf.float64)
            return tf.nn.relu(tf.reduce_sum(products, axis=-1))

        batch = tf.TensorSpec([1, *network.input_shape[1:]], tf.float32)
        self._trace = tf.function(trace, input_signature=[batch, tf.TensorSpec([], tf.int32)])

    def heat_map(
        self, resized: np.ndarray, label: int, width_px: int, height_px: int
    ) -> np.ndarray:
        """Where one image speaks for one class.

        Args:
            resized: float32 (size_px, size_px, 3), as the network takes it.
            label: Index of the class.
            width_px: Width of the map.
            height_px: Height of the map.

        Returns:
            float32 (height_px, width_px), 0..1 with 1 at its highest; all zero where no place speaks for the class.
        """
        places = self._trace(resized[None].astype(np.float32), label).numpy()[0]
        if not places.any():
            return np.zeros((height_px, width_px), np.float32)
        drawn = Image.fromarray((places / places.max()).astype(np.float32))
        heat = np.asarray(drawn.resize((width_px, height_px), Image.Resampling.BILINEAR)).clip(0)
        return heat / heat.max()


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A picture, uint8 (height, width, 3), with its map over it: the higher, the brighter and the less see-through."""
    import matplotlib

    colours = 255 * matplotlib.colormaps["plasma"](heat)[..., :3]
    share = 0.6 * heat[..., None]
    return np.round(pixels * (1 - share) + colours * share).astype(np.uint8)


def figure(pixels: np.ndarray, heat: np.ndarray, text: str) -> Any:
    """A matplotlib figure: the picture, the picture with its map, and a text above them."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 5), layout="constrained")
    drawn.suptitle(text, fontsize=10, parse_math=False)  # names are text, also with a $ in them
    for axis, picture in zip(drawn.subplots(1, 2), (pixels, overlay(pixels, heat))):
        axis.imshow(picture)
        axis.set_axis_off()
    return drawn
