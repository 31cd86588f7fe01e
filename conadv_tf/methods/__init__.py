"""Training methods, one file each."""

from conadv_tf.methods.absa import Absa
from conadv_tf.methods.conadv import ConAdv
from conadv_tf.methods.dat import Dat
from conadv_tf.methods.disadv import DisAdv
from conadv_tf.methods.freelb import FreeLb
from conadv_tf.methods.recycled import Recycled
from conadv_tf.methods.scala import Scala
from conadv_tf.methods.smooth_at import SmoothAt
from conadv_tf.methods.vanilla import Vanilla

__all__ = ["Absa", "ConAdv", "Dat", "DisAdv", "FreeLb", "Recycled", "Scala",
           "SmoothAt", "Vanilla"]
