"""One read API over a snapshot: its archives as byte streams, trees and files."""
