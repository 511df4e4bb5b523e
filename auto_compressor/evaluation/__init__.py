"""Measurements that several families share: causality, exact recall, borders, and the harness of lm-eval."""
