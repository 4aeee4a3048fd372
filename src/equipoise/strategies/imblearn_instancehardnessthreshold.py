"""Instance hardness: leaves out the frequent-class images that are hardest to classify."""

from typing import ClassVar

from equipoise.strategies import _samplers


class Strategy(_samplers.Cleaner):
    """A random forest says which images are hard; about 1:1 remains.

    Should lose where the hard images are the informative ones: the head then learns an easier
    question. It takes more than a minute per plan.

    Reference: Smith, Martinez, Giraud-Carrier 2014, https://doi.org/10.1007/s10994-013-5422-z;
    imbalanced-learn InstanceHardnessThreshold.
    """

    SAMPLER: ClassVar[str] = "InstanceHardnessThreshold"
