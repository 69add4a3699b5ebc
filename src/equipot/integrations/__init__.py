"""equipot models in other programs: ASE, molecular dynamics."""
