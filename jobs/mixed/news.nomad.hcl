# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0

# The news, in a virtual machine. The nodes' Nomad clients say in their meta
# where the kernel and the initial file system of the guest are.
job "mixed-news" {
  datacenters = ["aws1"]
  type        = "service"

  # A deployment is healthy when the checks of its services pass. Without KVM a guest boots slowly.
  update {
    health_check      = "checks"
    min_healthy_time  = "2s"
    healthy_deadline  = "3m"
    progress_deadline = "4m"
  }

  group "guest" {
    connectivity {
      service = "mixed-app/news"
      respond = ["news-api"]
      vm      = true
    }

    service {
      name         = "mixed-news"
      provider     = "consul"
      port         = "9001"
      address_mode = "alloc"

      check {
        type         = "http"
        path         = "/health"
        address_mode = "alloc"
        interval     = "2s"
        timeout      = "1s"
      }
    }

    restart {
      attempts = 3
      interval = "5m"
      delay    = "2s"
      mode     = "fail"
    }

    ephemeral_disk {
      size = 150
    }

    task "guest" {
      driver = "qemu"

      config {
        image_path = "local/disk"
        args = [
          "-cpu", "max",
          "-m", "160M",
          "-kernel", "${meta.guest}/vmlinuz",
          "-initrd", "${meta.guest}/initrd.img",
          # What the kernel does not know is the environment and the arguments of the first process.
          "-append", "console=ttyS0 quiet panic=-1 mitigations=off NOMAD_ALLOC_ID=${NOMAD_ALLOC_ID} NOMAD_DC=${node.datacenter} SIF_DEMO_NODE=${node.unique.name} SIF_DEMO_RUNTIME=machine -- news-gw",
        ]
      }

      # The driver wants a disk. This guest does not use it.
      template {
        data        = "nothing"
        destination = "local/disk"
      }

      resources {
        cpu    = 200
        memory = 448 # the guest's, and what QEMU needs itself
      }

      logs {
        max_files     = 1
        max_file_size = 5
      }
    }
  }
}
