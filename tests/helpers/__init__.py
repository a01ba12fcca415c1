"""What several tests share; on the path as `helpers`."""
