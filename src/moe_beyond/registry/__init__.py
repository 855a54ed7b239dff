"""What is registered, and the gate by which a new predictor replaces the champion. MLflow itself: `tracking`."""
