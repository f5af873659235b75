"""The fraud case: records are scored by a predictive model, and a rule decides."""
