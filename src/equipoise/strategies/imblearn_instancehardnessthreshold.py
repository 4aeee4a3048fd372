"""Instance hardness: leaves out the majority images that a random forest is least sure of, to about 1:1.

Should lose where the hard images are the informative ones: the head then learns an easier question.
Reference: Smith, Martinez, Giraud-Carrier 2014, https://doi.org/10.1007/s10994-013-5422-z; imbalanced-learn.
"""

from equipoise.strategies import _samplers

Strategy = _samplers.imblearn("InstanceHardnessThreshold", __name__)
