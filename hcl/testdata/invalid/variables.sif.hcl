variable "port" {
  type    = number
  default = "http"
}
variable "ports" {
  type    = list(number)
  default = [var.port]
}
variable "zone" {
  type = strng
}
variable "needed" {
  descripton = "No default"
}
variable "given" {
  validation {
    condition = true
  }
}
variable "missing" {
}
variable "port" {
}
variable "not a name" {
}
variable "small" {
  default = 70
  validation {
    condition     = var.small > 1023
    error_message = "The port must not be a privileged one."
  }
  validation {
    condition     = "maybe"
    error_message = "Never said."
  }
}

locals {
  a     = local.b
  b     = [local.c]
  c     = local.a
  fine  = "web"
  wrong = var.prot
  uses  = local.wrong # said once is enough
}
locals {
  fine = "again"
}

domain "shop" {
  service "web" {
    selector "nomad" {
      job = local.fin
    }
    selector "nomad" {
      job = lcal.fine
    }
    selector "nomad" {
      job = web
    }
    selector "nomad" {
      job = file("job.txt")
    }
    selector "nomad" {
      job = uper(local.fine)
    }
    selector "nomad" {
      job = upper(1, 2)
    }
    selector "nomad" {
      job = local.uses
    }
  }
  contract "c" {
    originators = [local.fine]
    responders  = local.fine
    dynamic "rule" {
      for_each = [80, 70000]
      content {
        protocol = "tcp"
        ports    = [rule.value, rul.value]
      }
    }
    dynamic "rule" {
      for_each = 5
      content {
        protocol = "tcp"
        ports    = [80]
      }
    }
    dynamic "rul" {
      for_each = [80]
      content {
      }
    }
  }
}
