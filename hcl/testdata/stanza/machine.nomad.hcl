variable "args" {
  type    = list(string)
  default = []
}

variable "cni" {
  type    = map(string)
  default = {}
}

job "a" {
  group "nothing" {
    network {
      port "http" {
        to = 8080
      }
    }
    connectivity {
      service = "d/s"
      vm      = true
    }
    task "t" {
      driver = "qemu"
      config {
        image_path = "local/disk.qcow2" # the disk
      }
    }
  }
  group "lines" {
    network {
      mode = "cni/sif"
      cni {
        args = {
          A = "b" # mine
        }
      }
    }
    connectivity {
      vm = true
    }
    task "t" {
      driver = "qemu"
      config {
        image_path = "local/disk.qcow2"
        args = [ # why
          "-smp", "2", # two

          # no screen
          "-vga", "none"
        ]
      }
    }
  }
  group "one-line" {
    network {
      cni {}
    }
    connectivity { vm = true }
    task "t" {
      driver = "qemu"
      config { args = ["-smp", "2"] }
    }
  }
  group "empty" {
    network {
      cni { args = { SIF_SERVICE = "mine" } }
    }
    connectivity {
      service = "d/s"
      vm      = true
    }
    task "t" {
      driver = "qemu"
      config {
        args = []
      }
    }
  }
  group "own-netdev" {
    network { mode = "cni/sif" }
    connectivity { vm = true }
    task "t" {
      driver = "qemu"
      config {
        args = ["-netdev", "tap,ifname=tap0,id=n7,script=no,downscript=no,vhost=on", "-smp", "2"]
      }
    }
  }
  group "own-card" {
    connectivity { vm = true }
    task "t" {
      driver = "qemu"
      config {
        args = [
          "-device", "e1000,netdev=n7,mac=02:51:f0:00:00:01",
        ]
      }
    }
  }
  group "own-both" {
    connectivity { vm = true }
    task "t" {
      driver = "qemu"
      config {
        args = [
          "-device", "e1000,mac=02:51:f0:00:00:01,netdev=n7",
          "-netdev", "tap,id=n7,script=no,downscript=no,ifname=tap0",
        ]
      }
    }
  }
  group "own-nic" {
    connectivity { vm = true }
    task "t" {
      driver = "qemu"
      config {
        args = ["-nic", "tap,ifname=tap0,script=no,downscript=no,model=virtio,mac=02:51:f0:00:00:01"]
      }
    }
  }
  group "beside" {
    connectivity { vm = true }
    task "t" {
      driver = "qemu"
      config {
        args = ["-netdev", "user,id=u", "-device", "virtio-net-pci,netdev=u", "-fw_cfg", "name=opt/x,string=${NOMAD_ALLOC_ID}"]
      }
    }
  }
  group "expression" {
    connectivity { vm = true }
    task "t" {
      driver = "qemu"
      config {
        args = var.args
      }
    }
  }
  group "by-exec" {
    connectivity {
      vm = true
    }
    task "t" {
      driver = "raw_exec"
      config {
        command = "qemu-system-x86_64"
        args    = ["-m", "256"]
      }
    }
  }
  group "own-mode" {
    network { mode = "cni/sif" }
    connectivity {}
  }
  group "no-machine" {
    network {
      cni { args = var.cni }
    }
    connectivity {
      service = "d/s"
      vm      = false
    }
    task "t" {
      driver = "qemu"
      config {
        args = ["-smp", "2"]
      }
    }
  }
}
