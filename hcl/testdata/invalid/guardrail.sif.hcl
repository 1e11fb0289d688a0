domain "shop" {
  labels = { env = "dev" }
  service "web" {
    selector "nomad" {
      job = "web"
    }
  }
  service "cards" {
    labels = { env = "prod", pci = "yes" }
    selector "nomad" {
      job = "cards"
    }
  }
  contract "peek" {
    originators = ["web"]
    responders  = ["cards"]
    rule {
      protocol = "tcp"
      ports    = ["8000-9000"]
    }
  }
}

guardrail "no-dev-to-pci" {
  deny {
    from = { env = "dev" }
    to   = { pci = "yes" }
    rule {
      protocol = "tcp"
      ports    = [8443]
    }
  }
}
