"""The gate by which a new predictor replaces the champion, its versions, its bundle. MLflow itself: `tracking`."""
