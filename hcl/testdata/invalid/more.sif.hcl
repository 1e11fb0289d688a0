domain "shop" {
  description = 5
  labels      = { name = "x", domain = "y", "" = "z", empty = "", tier = 1, env = "a", env = "b" }
  mode        = "audti"

  service "web" {
    labels = ["edge"]
    selector "node" {
    }
    selector "nod" {
      zone = "aws"
    }
    selector "node" {
      job  = "web"
      zone = ""
    }
    selector "consul" {
      service = "web"
      tags    = "v2"
      meta    = { tier = ["edge"] }
      tag     = "v2"
    }
  }
  external "office" {
    prefixes = ["10.0.0.1", "10.0.0.1/32", "fe80::1%eth0", "2001:db8::/32"]
  }
  external "home" {
    prefixes = ["10.0.0.2"]
  }

  contract "rules" {
    expires     = "31.1.2027"
    mode        = "off"
    originators = ["web", "shop/web"]
    responders  = ["web"]
    rule "web" {
      protocol = "tcp"
      ports    = [80]
    }
    rule {
      name     = "Web site"
      protocol = "tcp"
      ports    = [80]
    }
    rule {
      name     = "site"
      protocol = "icmp"
      types    = ["echo-requets", 300, "8-300", "packet-too-big", 8, "echo-request"]
    }
    rule {
      name     = "site"
      protocol = "icmpv6"
      ports    = [1]
    }
    rule {
      protocol = "tcp"
      types    = ["echo-request"]
    }
    rule {
      protocol = "icmp"
    }
    rule {
      protocol = "http"
      ports    = [80]
    }
  }
  contract "outside" {
    originators = ["office"]
    responders  = ["home", "web"]
    rule {
      protocol = "tcp"
      ports    = [80]
    }
  }
  contract "sif-audit" {
    originators = ["web"]
    responders  = ["web"]
    rule {
      protocol = "tcp"
      ports    = [80]
    }
  }
  contract "foreign" {
    originators = ["other/home", "other/wbe"]
    responders  = ["other/web"]
    rule {
      protocol = "tcp"
      ports    = [80]
    }
  }

  accept "other" {
  }
  accept "shop/rules" {
  }
  accept "other/orders" {
    services = ["wep", "office"]
  }
  accept "other/orders" {
  }
  accept "other/odrers" {
    services = []
  }
}

domain "other" {
  service "web" {
    selector "nomad" {
      job = "web"
    }
  }
  external "home" {
    prefixes = ["10.0.0.2"]
  }
  contract "orders" {
    originators = ["web"]
    responders  = ["shop/web"]
    rule {
      protocol = "tcp"
      ports    = [80]
    }
  }
}

guardrail "nothing" {
}
guardrail "nothing" {
  deny {
    from = {}
    port = 80
  }
}
guardrail "everything" {
  deny {
  }
  denny {
  }
}
