"""What an environment is, and what is wrong with it, found out with random actions before anything is trained."""
