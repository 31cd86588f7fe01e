"""Which of a group's keys each choice looks at, where that differs."""

OPTIMIZER_USES = {
    'lars': ('optimizer.momentum', 'optimizer.nesterov', 'optimizer.eeta',
             'optimizer.epsilon', 'optimizer.trust_clip'),
    'sgd': ('optimizer.momentum', 'optimizer.nesterov'),
    'adamw': ('optimizer.beta_1', 'optimizer.beta_2', 'optimizer.epsilon'),
    'lamb': ('optimizer.beta_1', 'optimizer.beta_2', 'optimizer.epsilon',
             'optimizer.trust_clip', 'optimizer.bias_correction',
             'optimizer.epsilon_placement', 'optimizer.decay_placement',
             'optimizer.scope', 'optimizer.scale_vectors',
             'optimizer.decay_vectors'),
}
SCHEDULE_USES = {
    'polynomial': ('schedule.warmup_epochs', 'schedule.power',
                   'schedule.end_lr', 'schedule.decay_epochs'),
    'piecewise': ('schedule.warmup_epochs', 'schedule.boundaries',
                  'schedule.values'),
    'cosine': ('schedule.warmup_epochs', 'schedule.end_lr',
               'schedule.decay_epochs'),
    'cyclic': (),
    'constant': ('schedule.warmup_epochs',),
}
GROWTH_USES = {
    'none': (),
    'scheduled': ('growth.max_batch_size', 'growth.factor', 'growth.epochs'),
    'curvature': ('growth.max_batch_size', 'growth.factor', 'growth.decrease',
                  'growth.patience'),
}
