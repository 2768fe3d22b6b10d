"""Image sets, the resumable loader, and the LightningDataModules over them."""
