"""The experiment's configuration: load, check, resolve, save.

Built on `official.modeling.hyperparams`, which merges and saves but checks
neither types nor ranges; that part is here.
"""

from conadv_tf.config.checks import validate
from conadv_tf.config.reader import load
from conadv_tf.config.reader import save
from conadv_tf.config.resolution import differences
from conadv_tf.config.resolution import resolve
from conadv_tf.config.resolution import unused_keys
from conadv_tf.config.schema import AttackConfig
from conadv_tf.config.schema import CheckpointConfig
from conadv_tf.config.schema import DataConfig
from conadv_tf.config.schema import DerivedConfig
from conadv_tf.config.schema import EvaluationConfig
from conadv_tf.config.schema import ExperimentConfig
from conadv_tf.config.schema import InputError
from conadv_tf.config.schema import MethodConfig
from conadv_tf.config.schema import ModelConfig
from conadv_tf.config.schema import ObjectiveConfig
from conadv_tf.config.schema import OptimizerConfig
from conadv_tf.config.schema import RuntimeConfig
from conadv_tf.config.schema import ScheduleConfig
