"""What is registered, and the gate that lets a new predictor take the champion's place. MLflow itself: `tracking`."""
