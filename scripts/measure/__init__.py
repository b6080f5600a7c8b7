"""What the scripts that measure have in common. Standard library only; figures are judged by the scripts, not here."""
