domain "node" {
}

domain "Shop" {
}

domain "shop" {
  service "web" {
    selector "nomad" {
      job = "web"
    }
  }
  service "this-name-is-longer-than-allowed" {
  }
  service "web" {
    selector "nomad" {
      job = "other"
    }
  }
  external "web" {
    prefixes = ["10.0.0.0/8"]
  }
  contract "c" {
    originators = ["web"]
    responders  = ["web"]
    rule {
      protocol = "tcp"
      ports    = [80]
    }
  }
  contract "c" {
    originators = ["web"]
    responders  = ["web"]
    rule {
      protocol = "tcp"
      ports    = [80]
    }
  }
}

domain "shop" {
}
