job "a" {
  group "vm-values" {
    connectivity {
      vm = "yes"
    }
  }
  group "vm-variable" {
    connectivity {
      vm = var.machine
    }
  }
  group "vm-arguments" {
    network {
      cni {
        args = var.args
      }
    }
    connectivity {
      vm = true
    }
  }
  group "vm-dynamic" {
    network {
      dynamic "cni" {
        for_each = [1]
        content {}
      }
    }
    connectivity {
      vm = true
    }
  }
  group "vm-taken" {
    network {
      cni {
        args = {
          SIF_VM = "false"
        }
      }
    }
    meta = {
      "sif.vm" = "false"
    }
    connectivity {
      vm = true
    }
  }
}
