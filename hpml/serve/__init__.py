"""Serving: a workload behind a queue that keeps a deadline (`service`), over HTTP (`app`), with a page for people."""
