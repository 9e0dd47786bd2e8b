"""What a network is, without arrays: its architecture, formulas, optimizers and initial weights."""
