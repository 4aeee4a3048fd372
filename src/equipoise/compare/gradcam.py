"""Grad-CAM: which places of an image speak for a class, in the eyes of one network."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from equipoise.compare.lettering import lettering
from equipoise.core.errors import DataError
from equipoise.embed.backbones import load_keras

#: Places a side that a map has at least: what every backbone's last feature map has at 224 px.
PLACES = 7

#: How much of a pixel's colour the map takes where it is highest, 0..1.
_LARGEST_SHARE = 0.6


class GradCam:
    r"""Maps of one network, traced once.

    $\mathrm{map} = \mathrm{ReLU}(\sum_k \frac{\partial s}{\partial A_k} \odot A_k)$, where $A_k$
    are the channels of the last feature map and $s$ is the logit of the class less the mean of the
    others' (for two classes the log odds).

    Average pooling and a linear head make the derivative the same at every place, its own spatial
    mean: this is Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391). Below 224 px
    the last map has too few places to point anywhere. The last map with enough of them is taken
    then, and there the product at each place is HiResCAM (Draelos and Carin 2020,
    https://arxiv.org/abs/2011.08891), since a mean derivative misses what stands at one place.

    Attributes:
        trace: The traced function: a batch of one image and a label -> float64 (1, places, places).
    """

    def __init__(self, network: Any, places: int = PLACES) -> None:
        """Prepare the maps.

        Args:
            network: A flat network as `network.with_head` makes it: pixels -> logits.
            places: How many places a side the map has at least.
        """
        keras = load_keras()
        import tensorflow as tf

        feature_map = _last_map(network, places)
        outputs = [feature_map, network.output]
        with_map = keras.Model(network.input, outputs)
        num_classes = network.output_shape[-1]
        num_rivals = num_classes - 1

        def trace(batch: Any, label: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(batch)  # frozen layers are watched by nobody else
                channels, logits = with_map(batch, training=False)
                own_logit = logits[:, label]
                logit_sum = tf.reduce_sum(logits, axis=1)
                rival_mean = (logit_sum - own_logit) / num_rivals
                score = own_logit - rival_mean
            derivative = tape.gradient(score, channels)
            # float64: channels of an untrained network cancel to the last digits of float32.
            channels = tf.cast(channels, tf.float64)
            derivative = tf.cast(derivative, tf.float64)
            summed = tf.reduce_sum(channels * derivative, axis=-1)
            return tf.nn.relu(summed)

        image_shape = network.input_shape[1:]
        one_image = tf.TensorSpec([1, *image_shape], tf.float32)
        one_label = tf.TensorSpec([], tf.int32)
        signature = [one_image, one_label]
        self.trace = tf.function(trace, input_signature=signature)

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
            float32 (height_px, width_px), 0..1 with 1 at its highest; all zero where no place
            speaks for the class.
        """
        batch = resized[None].astype(np.float32)
        traced = self.trace(batch, label)
        places = traced.numpy()[0]
        if not places.any():
            return np.zeros((height_px, width_px), np.float32)
        scaled = places / places.max()
        coarse = Image.fromarray(scaled.astype(np.float32))
        size_px = (width_px, height_px)
        enlarged = coarse.resize(size_px, Image.Resampling.BILINEAR)
        heat = np.asarray(enlarged).clip(0)
        return heat / heat.max()


def _last_map(network: Any, places: int) -> Any:
    """Output of the last layer with enough places a side, else of the last one that has places."""
    spatial = []
    fine = []
    for layer in network.layers:
        shape = tuple(getattr(layer.output, "shape", ()))  # some layers have several outputs
        if len(shape) != 4:
            continue
        spatial.append(layer)
        _, height, width, _ = shape
        if min(height, width) >= places:
            fine.append(layer)
    candidates = fine or spatial
    # The first one is the picture itself.
    if len(spatial) < 2:
        raise DataError(
            "This network has no feature map with places (a vision transformer has tokens), so nothing "
            "can be mapped."
        )
    return candidates[-1].output


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay a map over a picture: the higher, the brighter and the less see-through.

    Args:
        pixels: uint8 (height, width, 3).
        heat: float (height, width), 0..1.

    Returns:
        uint8 (height, width, 3).
    """
    import matplotlib

    colour_map = matplotlib.colormaps["plasma"]
    red_green_blue = colour_map(heat)[..., :3]
    colours = 255 * red_green_blue
    share = _LARGEST_SHARE * heat[..., None]
    blended = pixels * (1 - share) + colours * share
    return np.round(blended).astype(np.uint8)


def figure(pixels: np.ndarray, heat: np.ndarray, text: str) -> Any:
    """Draw a matplotlib figure: the picture, the picture with its map, and a text above them."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 5), layout="constrained")
    letters = lettering(text)
    drawn.suptitle(
        letters.text,
        fontsize=10,
        fontfamily=letters.families,
        parse_math=False,  # names are text, also with a $ in them
    )
    left, right = drawn.subplots(1, 2)
    left.imshow(pixels)
    left.set_axis_off()
    right.imshow(overlay(pixels, heat))
    right.set_axis_off()
    return drawn
