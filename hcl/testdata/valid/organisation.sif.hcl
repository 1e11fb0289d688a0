# What the language has, in one graph.
variable "port" {
  type        = number
  default     = 8080
  description = "Where the API listens"
  validation {
    condition     = var.port > 1023
    error_message = "The port must not be a privileged one."
  }
}

variable "offices" {
  type = map(object({
    prefixes = list(string)
    trusted  = optional(bool, false)
  }))
  default = {
    berlin = { prefixes = ["192.0.2.0/24", "2001:db8:1::/48"] }
    oslo   = { prefixes = ["198.51.100.7"], trusted = true }
  }
}

locals {
  prod  = { env = "prod", team = local.team }
  team  = upper("shop")
  cidrs = flatten([for name in sort(keys(var.offices)) : var.offices[name].prefixes])
}

domain "shop" {
  description = "The shop"
  labels      = local.prod
  mode        = "audit"

  service "web" {
    description = "What customers see"
    labels      = { tier = "edge" }
    selector "nomad" {
      namespace  = "prod"
      region     = "eu"
      job        = "shop"
      group      = "web"
      datacenter = "dc1"
      node_class = "large"
      node_pool  = "web"
    }
    selector "consul" {
      namespace  = "prod"
      service    = "web"
      tags       = ["v2", "edge"]
      meta       = { "tier" = "edge", team = local.team }
      datacenter = "dc1"
    }
  }

  service "batch" {
    selector "node" {
      zone       = "aws"
      node       = "w1"
      node_class = "batch"
      node_pool  = "spot"
    }
  }

  external "offices" {
    description = "Where we sit"
    labels      = { kind = "office" }
    prefixes    = local.cidrs
  }

  external "payments" {
    prefixes = ["203.0.113.7"]
    names    = ["api.example.com", "*.cdn.example.com"]
    exit     = "node"
    consul {
      service    = "postgres"
      datacenter = "dc1"
      within     = local.cidrs
    }
  }

  external "telemetry" {
    dynamic "node" {
      for_each = ["here"]
      content {}
    }
  }

  contract "storefront" {
    description = "Offices see the shop"
    labels      = { ticket = "SEC-${40 + 2}" }
    mode        = "audit"
    expires     = "2027-01-31T01:00:00+01:00"
    originators = ["offices", "partners/portal"]
    responders  = ["web"]
    rule {
      name     = "web"
      protocol = "tcp"
      ports    = [var.port, "9000-9010", "443"]
    }
    rule {
      protocol = "sctp"
      ports    = [3868]
    }
    rule {
      protocol = "icmp"
      types    = ["echo-request", 13, "3-4"]
    }
    rule {
      protocol = "icmpv6"
      types    = ["echo-request"]
    }
    path {
      require = ["encrypted"]
      prefer  = ["low-cost"]
    }
  }

  contract "reports" {
    enabled     = false
    mode        = "enforce"
    originators = ["batch"]
    responders  = ["offices"]
    dynamic "rule" {
      for_each = { tcp = [25, 587], udp = [53] }
      content {
        protocol = rule.key
        ports    = rule.value
      }
    }
  }

  contract "pay" {
    originators = ["web"]
    responders  = ["payments"]
    rule {
      protocol = "icmp"
      types    = ["echo-request"]
    }
  }

  contract "metrics" {
    originators = ["web", "batch"]
    responders  = ["telemetry"]
    rule {
      protocol = "udp"
      ports    = [8125]
    }
  }

  accept "partners/orders" {
    services = ["web"]
  }
}

domain "partners" {
  labels = { env = "dev" }
  reject = false
  service "portal" {
    selector "nomad" {
      job = "portal"
    }
  }
  contract "orders" {
    originators = ["portal"]
    responders  = ["shop/web"]
    rule {
      protocol = "tcp"
      ports    = [var.port]
    }
  }
  accept "shop/storefront" {
  }
}

guardrail "no-dev-to-mail" {
  description = "Development sends no mail"
  deny {
    from = { env = "dev" }
    to   = { kind = "office" }
    rule {
      protocol = "tcp"
      ports    = [25, "500-600"]
    }
  }
  deny {
    from = { domain = "partners" }
    to   = { name = "batch" }
  }
}

binding "elsewhere" {
  description = "Another team"
  labels      = local.prod
  service "cards" {
    labels = { pci = "yes" }
  }
  nomad {
    jobs = ["shop-${lower("EU")}", "shop-*"]
  }
  nomad {
    namespace = "prod-*"
  }
  consul {
    namespace = "prod"
    services  = ["web"]
  }
  dynamic "node" {
    for_each = ["aws", "gcp"]
    content {
      zone       = node.value
      node       = "w*"
      node_class = "batch"
      node_pool  = "spot"
    }
  }
  attach {
    services = ["db", "db-*"]
    zone     = "aws1"
    node     = "db-${lower("W")}*"
  }
  attach {
    services   = ["*"]
    node       = "*"
    node_class = "database"
  }
  outside {
    prefixes   = local.cidrs
    names      = ["*", "*.com"]
    ports      = [var.port, "9000-9010"]
    node_ports = [8125, "4317-4318"]
  }
}

link "aws-gcp" {
  description = "Leased"
  between     = ["aws", "gcp/${lower("P")}1"]
  labels      = ["encrypted", "low-cost"]
  cost        = var.port - 8070
  endpoints   = "private"
  mtu         = 1400
}

link "everywhere" {
  between   = ["*", "*"]
  endpoints = "default"
  enabled   = false
}
