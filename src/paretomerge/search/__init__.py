"""MAP: fronts found from evaluations of merged models alone, without a gradient (Li et al. 2025)."""
