"""One folder per case; `pipeline.registry` names them."""
