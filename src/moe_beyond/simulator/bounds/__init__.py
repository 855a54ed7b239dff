"""What no policy can beat: Belady's MIN, stack distances, the best split over layers."""
