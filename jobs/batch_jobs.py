"""The jobs that fill run directories, by name."""

from jobs import classify, complete, embed, quantize, sample, score

BATCH_JOBS = {
    module.JOB.name: module.JOB for module in (quantize, complete, sample, embed, score, classify)
}
