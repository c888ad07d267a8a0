"""The mathematics, tensors in and tensors out: losses, advantages, Adam; networks and distributions; normalisation."""
