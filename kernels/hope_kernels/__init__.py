"""Operators of HOPE models: each folder holds a reference, a fast form and a page with the derivation."""
