"""What a person reads: tables and figures from run directories."""
