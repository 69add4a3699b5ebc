"""Training on Lightning: from a configuration to a run directory.

A training, in the order in which it comes about
    run            reads from top to bottom: prepare, train, finish; what Lightning is told
    preparation    device, data, potential
    devices        which device, how many processes; sums over processes
    fine_tune      a start from a trained model; elements, levels and reference energies of its potential
    pretrained     the same from a network without energies: its body, readouts of its own
    replay         frames that the trained model shall not forget; errors before and after
    memory         a forecast of the memory that a step takes
    batches        the steps of an epoch, for Lightning
    module         one step: predict, loss, gradient, optimizer; halving where memory runs out
    monitor        what happens around the steps, in one fixed order: measure, decide, write, stop
    results        the end: errors of the best weights, plots, the summary
    ensemble       several trainings with seeds of their own

What a step takes
    loss           errors and their weighted sum
    metrics        errors over an epoch, also those of each level of theory
    optimizers     Adam, AdamW, Muon; which weights decay
    learning_rate  its schedule, and the search for one
    ema            averages of the weights
    stopping       signals, time budget, early stopping

What is left behind (where each file lies: ``equipot.run_directory``)
    checkpoints    written whole, found again, resumed by the same training only
    history        metrics.csv, the learning curve, sessions.json
    report         lines on the console and in log.txt; progress: the bar
    html_report    report.html, the page of a run
    loggers        TensorBoard, Weights & Biases
"""
