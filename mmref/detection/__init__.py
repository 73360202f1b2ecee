"""Boxes: from a detector's raw maps to boxes, labels and masks. Plain NumPy; nothing here knows a network."""
