"""What networks are made of: operations, the layer base, wavelets, scan orders, the recurrence, SS2D."""
