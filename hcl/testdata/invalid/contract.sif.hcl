domain "shop" {
  service "http-proxy" {
    selector "nomad" {
      job = "web"
    }
  }
  external "users" {
    prefixes = ["10.0.0.0/8"]
  }
  contract "unknown" {
    originators = ["http-proxy", "http-prox"]
    responders  = ["elsewhere", "other/web", "users"]
    rule {
      protocol = "tcp"
      ports    = [80]
    }
  }
  contract "nothing" {
    originators = []
    responders  = ["http-proxy", "http-proxy"]
  }
  contract "types" {
    enabled     = "yes"
    originators = "http-proxy"
    responders  = [80, null, "", "a/b/c", "Bad"]
    rule {
      protocol = "TCP"
      ports    = []
    }
    rule {
      protocol = "icmp"
      ports    = 80
    }
    rule {
      protocol = var.protocol
      ports    = [upper("a")]
    }
    path {
    }
    path {
      require = [""]
    }
  }
}
