"""The training loop, and what it needs.

The files, each of which imports only from those above it::

    signals        Ctrl-C and `kill`, noticed between two steps
    trackers       TensorBoard and W&B, which get the same records as the log
    distributed    several processes that train one model: DDP and FSDP2
    document_mask  attention that stays inside a document of a packed row
    steps          attention and the MLP of a step on a CPU, in C
    kernels        who computes the layers of a step on a CPU: torch, or what is faster than it
    teachers       models whose probabilities the run learns from, beside the text
    optim          decay groups, AdamW, Muon, the learning rate as a function of the step
    curves         pictures of the losses of a run
    log            progress bar, `metrics.jsonl`, samples, loss plot
    checkpoint     exact resume: complete, checked checkpoints, of which two are kept
    run            everything that the loop works on, from a seed or from a checkpoint
    divergence     which tensor became NaN or infinite first, and a report to repeat the step
    loop           **the training loop, on one screen**
    selfcheck      what this machine has, and which settings are fastest on it
    plan           what a run will need, before it starts: memory and time
    verify         the proof that a killed run can be resumed exactly
"""
