"""Early exits: the multi-exit network, its heads, loss, training and calibration."""
