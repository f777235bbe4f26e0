"""The training loop, and what it needs.

The files, each of which imports only from those above it::

    signals        Ctrl-C and `kill`, heard between two steps
    trackers       TensorBoard and W&B, told what the log is told
    distributed    several processes that train one model: DDP and FSDP2
    document_mask  attention that stays inside a document of a packed row
    optim          decay groups, AdamW, Muon, the learning rate as a function of the step
    curves         pictures of the losses of a run
    log            progress bar, `metrics.jsonl`, samples, loss plot
    checkpoint     exact resume: checkpoints that are whole, checked, and never alone
    run            everything that the loop works on, from a seed or from a checkpoint
    divergence     which tensor lost its numbers first, and a report to repeat the step
    loop           **the training loop, on one screen**
    selfcheck      what this machine has, and which settings are fastest on it
    plan           what a run will need, before it starts: memory and time
    verify         the proof that a killed run goes on exactly
"""
