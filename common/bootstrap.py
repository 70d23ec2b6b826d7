"""The composition root: the one place that knows which technology stands behind which port."""
