"""Network -> logits -> packed masks -> CSV. Validation runs the same path as the submission."""
