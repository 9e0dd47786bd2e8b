"""Proof that gradients are right: finite differences, promised accuracy, reports of real hardware."""
