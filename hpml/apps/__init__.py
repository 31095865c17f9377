"""Applications: what somebody does with a trained workload on files of their own."""
