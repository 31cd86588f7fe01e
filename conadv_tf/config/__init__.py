"""The experiment's configuration: load, check, resolve, save.

Built on `official.modeling.hyperparams`, which merges and saves but checks
neither types nor ranges; that part is here.
"""

from conadv_tf.config.attack_rules import attacks_images
from conadv_tf.config.checks import check_batch, check_outputs, validate
from conadv_tf.config.compression_rules import (
    travels as gradients_travel_in_codes,
)
from conadv_tf.config.growth_rules import changes as batch_changes
from conadv_tf.config.growth_rules import measures as curvature_is_measured
from conadv_tf.config.perturbation_rules import delay as perturbation_delay
from conadv_tf.config.reader import load, load_resolved, save
from conadv_tf.config.resolution import differences, resolve, unused_keys
from conadv_tf.config.schema import (
    AttackConfig,
    CheckpointConfig,
    CompressionConfig,
    CurvatureConfig,
    DataConfig,
    DerivedConfig,
    EvaluationConfig,
    ExperimentConfig,
    flatten,
    GrowthConfig,
    InputError,
    MethodConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PerturbationConfig,
    RuntimeConfig,
    ScheduleConfig,
    training_replicas,
)
from conadv_tf.config.text_rules import is_text
from conadv_tf.config.unlabelled_rules import describe as describe_unlabelled
from conadv_tf.config.unlabelled_rules import rows as unlabelled_rows
